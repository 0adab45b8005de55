"""The requests of the HTTP API that concern the DICOMweb server."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from medseg.serve.dicomweb.series_requests import (
    SeriesRequest,
    SeriesSearch,
    StudySearch,
    found_series,
    found_studies,
)
from medseg.serve.dicomweb.transfers import Transfers
from medseg.serve.service import Service


def add_dicomweb(app: FastAPI, service: Service, transfers: Transfers, accepted: Any) -> None:
    """Add the requests to an application.

    Searches are sent in the body, because proxies log addresses.

    Args:
        app: The application.
        service: The service.
        transfers: Its exchange with the DICOMweb server.
        accepted: The dependency that requires a token and gives its identifier.
    """

    @app.post("/api/dicomweb/studies", summary="Search for studies of the DICOMweb server")
    def studies(wanted: StudySearch, owner: str = accepted) -> list[dict[str, Any]]:
        return found_studies(transfers.server, wanted)

    @app.post("/api/dicomweb/series", summary="List the series of a study")
    def series(wanted: SeriesSearch, owner: str = accepted) -> list[dict[str, Any]]:
        return found_series(transfers.server, wanted)

    @app.post("/api/dicomweb/jobs", status_code=201, summary="Predict a series, and store the label map")
    def create(wanted: SeriesRequest, owner: str = accepted) -> dict[str, Any]:
        return service.view(service.retrieve(wanted, owner))

    @app.post("/api/jobs/{job_id}/store", status_code=202, summary="Store the label map of a job again")
    def store(job_id: str, owner: str = accepted) -> dict[str, Any]:
        return service.view(service.store_again(job_id, owner))
